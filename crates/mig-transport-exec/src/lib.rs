//! Migration over exec
