//! Tables of questions and replies.
