//! What is answered to a DNS question, given a view.
