//! cbt
