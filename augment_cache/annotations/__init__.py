"""From a COCO file to crops: parsing and checking it, the class map, the window of a crop, and cutting it out."""
