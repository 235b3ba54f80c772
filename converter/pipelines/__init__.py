"""From a checkpoint and a prompt to a picture: whole pipelines, drawing stage by stage, finding what is at fault.

Knows no model by name and no key of one: a family says how its pictures are drawn (`nets.pipeline_spec`).
"""
