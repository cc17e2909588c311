"""Serving: jobs of many clients on continuous batching, a step of the loop at a time.

errors     what a service refuses
jobs       what a client asks for and looks at: state, progress, preview, cancel, result
service    models by name, and the jobs that are theirs
worker     a model's threads; line: its jobs, and what is to be done next; ticket: how late a job is
turns      which images make the next call; rows: how they make it; calls: engine calls and their faults; stages:
           encoding and decoding beside them
model      a bundle, how it is loaded, and LoRAs in its weights; memory: which models are in memory
stats      counts
"""
