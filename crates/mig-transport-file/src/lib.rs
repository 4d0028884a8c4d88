//! Migration over file
