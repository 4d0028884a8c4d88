//! Migration over tcp
