//! Random histories of origins that come, write, die and leave, and of links that come and go: whatever is proven is so.
