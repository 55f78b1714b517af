"""Tests of passes: one file for each."""
