"""An HTTP server on the SavedModels of one model: `python -m alignseg_tf serve savedmodels/NAME`.

server       start, signals, stop
settings     limits and times
app          the application: what every request passes, and the files of pages
routes       the addresses
service      what all requests share: a request's body, image and answer
decoders     processes that decode images
images       from the bytes of a request to an image, within limits
models       versions of the model, and the switch to a new one
answers      bodies of answers, also in the OpenAPI document
refusals     why a request is refused
monitoring   metrics for Prometheus
"""
