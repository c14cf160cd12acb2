"""Detections of a folder of stored images, as a Parquet data set, by Ray Data.

folder ─list─► images, cut into parts ─Ray Data─► part-….parquet, one file a part ─► _SUCCESS

A part is a fixed slice of a list that is written before anything else, and its file has a fixed
name. So a part that is done twice, because a node died or a job was started again, is still there
once.
"""
