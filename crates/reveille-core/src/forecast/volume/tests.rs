//! Stories of forecasts: what a user would miss.
