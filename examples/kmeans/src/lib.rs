//! K-Means as cloud processes: a coordinator and its workers.
