//! Migration over unix
