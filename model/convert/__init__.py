"""Data sets in the common forms (COCO JSON, Pascal VOC XML, CSV) into YOLO form."""
