"""Serving: jobs of many clients on continuous batching, a step of the loop at a time.

errors     what a service refuses
jobs       what a client asks for and looks at: state, progress, preview, cancel, result
service    models by name, and the jobs that are theirs
worker     a model's queue and its threads; turns: which images make the next call; rows: how they make it;
           stages: encoding and decoding beside the calls
opening    how models are loaded
stats      counts
"""
