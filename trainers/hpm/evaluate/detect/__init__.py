"""Object detection and instance segmentation: Mask R-CNN on a plain encoder, as in ViTDet."""
