"""A Django project in one file, served with OPENWHISK_APP=app:application."""

import json
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="a test's", USE_TZ=True)


def predict(request: Any) -> Any:
    return JsonResponse({"seen": json.loads(request.body), "url": request.build_absolute_uri()})


urlpatterns = [path("model/predict", predict)]
application = get_wsgi_application()
