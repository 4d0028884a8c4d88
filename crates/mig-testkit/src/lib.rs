//! Transport conformance suite, fault doubles and synthetic guests for tests
