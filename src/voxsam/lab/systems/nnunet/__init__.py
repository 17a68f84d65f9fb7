"""The real nnU-Net (the package nnunetv2): export, plan, preprocess, train and predict as its own commands do."""
