"""ControlNets beside a bundle's own graphs."""
