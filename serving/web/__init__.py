"""The HTTP side of a service: protocols that people's programs speak, mapped to requests and jobs.

settings guard       who may ask, from where, how much; nothing of a prompt in a log
fields pictures      tables from a protocol's fields to a request's; pictures in bodies
failures waiting     errors in each protocol's form; a job as something to await, cancelled with its client
openai sdapi tasks jobs_api   the protocols
health metrics page  what probes, collectors and people look at
app                  all of it as one application
"""
