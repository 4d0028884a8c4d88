//! Migration over fd
