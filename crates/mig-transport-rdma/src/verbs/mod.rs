//! librdmacm and libibverbs behind safe types.
