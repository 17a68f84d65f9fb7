"""The data engine: training samples made of real scans, with lesions painted in, real labels, organs and regions."""
