//! Images: what instances boot.
