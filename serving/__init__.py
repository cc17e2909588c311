"""Serving: jobs of many clients on continuous batching, a step of the loop at a time.

errors     what a service refuses
jobs       what a client asks for and looks at: state, progress, preview, cancel, result
service    models by name, and the jobs that are theirs
"""
