"""The data engine: training samples from real scans, with painted lesions, real lesions, organs and regions."""
