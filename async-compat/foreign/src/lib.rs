//! Nothing: the tests of this package run crates that ask for a runtime of their own on
//! corespun's. It is a package so that the library does not depend on them.
