"""AUTOMATIC1111's interface.

fields   tables of its fields and names
making   txt2img, img2img, progress, interrupt
state    lists, options, pictures looked at and enlarged
"""
