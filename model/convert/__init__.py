"""Data sets in the common forms (COCO JSON, Pascal VOC XML, CSV) into YOLO form.

Not on supervision's readers and writers (0.31): these keep crowd boxes and boxes outside of the
image, name no record in errors, search no folders, and leave a half-written output behind.
"""
