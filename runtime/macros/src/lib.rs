//! The attribute macro of praas-runtime.
