"""Compares an artifact with its source: detections in fp32, mAP where precision is reduced."""
