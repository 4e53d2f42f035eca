"""Quantizers made of quantizers: in a row, side by side, one for all heads; and the row with implicit books."""
