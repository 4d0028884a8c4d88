//! Named guest RAM blocks, dirty tracking, zero tests and bulk placement
