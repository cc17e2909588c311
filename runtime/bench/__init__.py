"""Measuring: candidates in processes of their own, and the machine that they ran on."""
