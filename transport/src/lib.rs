//! Bytes between processes: endpoints, channels, memory regions, and their backends.
