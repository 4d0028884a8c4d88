//! The decoder and the encoder against whole streams: real ones, small ones built here, damaged
//! ones, and ones cut anywhere.

mod accepts;
mod corpus;
mod cuts;
mod damage;
mod golden;
mod modes;
mod mutated;
mod rejects;
mod small;
mod support;
