"""A service under load: throughput and latency beside serial and request-level serving, and a soak test.

    python -m benchmarks.serving                                 # four loads, three ways to serve, in one run
    python -m benchmarks.serving --loads 0.8,1.2 --jobs 20 --seed 7 --backend openvino
    python -m benchmarks.serving --soak 2000 --clients 64        # every image against the one made alone

Load: jobs of 4, 20 and 50 steps, several samplers, with and without guidance, of two sizes, arrive at random (Poisson)
at shares of the capacity that serial serving was measured to have. Each way serves the same arrivals of each round, one
after the other, so that a machine whose speed changes changes all. Ways: `serial` makes one request at a time in the
order of arrival; `request` makes those waiting requests together that agree in size and steps with the first, eight at
most; `step` is `latentrt.serving`. A job's slowdown is its latency over the time that it takes alone.

Soak: clients of the service's HTTP interface ask for mixed images at a time; some vanish midway, some send rubbish.
Every image is compared with the one that a pipeline makes alone.

Writes a JSON file in benchmarks/results (`-o`), and ends with status 1 if a goal is missed.
"""
