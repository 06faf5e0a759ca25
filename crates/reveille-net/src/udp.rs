//! UDP ports are listened on, so that they are taken, and not served yet.
