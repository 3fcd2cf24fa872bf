//! Lists that once failed, shrunk.

