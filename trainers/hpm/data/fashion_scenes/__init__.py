"""FashionScenes, the embedded data set: garments on photographs, rendered when first asked for."""
