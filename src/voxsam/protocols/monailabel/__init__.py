"""The protocol of MONAI Label's server, for 3D Slicer's MONAI Label module, MITK, OHIF, MONAILabelClient.

datastore   images by their ids (served folders, uploads), those that are open, and the labels that clients save
routes      all of it as HTTP
"""
