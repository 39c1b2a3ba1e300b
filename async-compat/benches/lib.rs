//! Nothing but its benches and tests, which run corespun-compat and tokio from one source.
