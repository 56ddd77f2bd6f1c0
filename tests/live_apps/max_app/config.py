API_TITLE = "MAX Every Shape"
API_DESC = "One of every API shape of the models."
API_VERSION = "1.0.0"
RESTPLUS_MASK_SWAGGER = False
SWAGGER_UI_DOC_EXPANSION = "none"
