"""An HTTP server on the SavedModels of one model: `python -m alignseg_tf serve savedmodels/NAME`.

server       start, signals, stop
settings     limits and times
app          the application: what every request passes, and the files of pages
routes       the addresses
service      the way of a request: body, image, model
images       from bytes to an image, within limits, in separate processes
models       versions of the model, and the switch to a new one
answers      bodies of answers, also in the OpenAPI document
monitoring   metrics for Prometheus
"""
