//! Nothing but its benches, which run corespun-compat and tokio in turns.
