//! PVH loader.
