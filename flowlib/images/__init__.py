"""Grey images: data sets, pictures of one's own, the Glow and a classifier."""
