//! The server: receives, keeps, serves and sends back.

pub mod control;
