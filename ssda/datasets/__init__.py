"""Raw layouts, conversion, index, sampling, transforms."""
