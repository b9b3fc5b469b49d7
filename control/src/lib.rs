//! The thin control plane: API types, server, store, client, placement and swap policy.
